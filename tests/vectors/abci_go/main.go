// Prints tests/vectors/abci.json: ABCI frames as CometBFT's own code writes them. To print it anew, in a directory of its own:
//
//	go mod init vectors && go get github.com/cometbft/cometbft@v0.38.25 && go mod tidy && go run . > ../abci.json
package main

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/libs/protoio"
	"github.com/cometbft/cometbft/proto/tendermint/crypto"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cosmos/gogoproto/proto"
)

type vector struct {
	Name  string `json:"name"`
	Frame string `json:"frame"`
}

func fill(from byte, count int) []byte {
	out := make([]byte, count)
	for at := range out {
		out[at] = from + byte(at)
	}
	return out
}

func frame(message proto.Message) string {
	raw, err := protoio.MarshalDelimited(message)
	if err != nil {
		panic(err)
	}
	return hex.EncodeToString(raw)
}

func main() {
	at := time.Unix(1_700_000_000, 123_456_789).UTC()
	validator := abci.Validator{Address: fill(1, 20), Power: 10}
	votes := abci.CommitInfo{Round: 2, Votes: []abci.VoteInfo{{Validator: validator, BlockIdFlag: cmtproto.BlockIDFlagCommit}}}
	extended := abci.ExtendedCommitInfo{Round: 2, Votes: []abci.ExtendedVoteInfo{{Validator: validator, VoteExtension: fill(2, 5)}}}
	misbehavior := []abci.Misbehavior{{Type: abci.MisbehaviorType_DUPLICATE_VOTE, Validator: validator, Height: 3, Time: at, TotalVotingPower: 40}}
	txs := [][]byte{fill(7, 300), {}, fill(9, 3)}
	params := &cmtproto.ConsensusParams{Block: &cmtproto.BlockParams{MaxBytes: 4 << 20, MaxGas: -1}}
	updates := []abci.ValidatorUpdate{abci.UpdateValidator(fill(3, 32), 10, "ed25519")}
	requests := []struct {
		name    string
		request *abci.Request
	}{
		{"echo", abci.ToRequestEcho("héllo")},
		{"flush", abci.ToRequestFlush()},
		{"info", abci.ToRequestInfo(&abci.RequestInfo{Version: "0.38.25", BlockVersion: 11, P2PVersion: 8, AbciVersion: "2.0.0"})},
		{"init_chain", abci.ToRequestInitChain(&abci.RequestInitChain{Time: at, ChainId: "dds-1", ConsensusParams: params, Validators: updates, AppStateBytes: []byte("\"ab\""), InitialHeight: 1})},
		{"query", abci.ToRequestQuery(&abci.RequestQuery{Data: fill(5, 33), Path: "/entry", Height: 1 << 40, Prove: true})},
		{"check_tx", abci.ToRequestCheckTx(&abci.RequestCheckTx{Tx: fill(6, 200), Type: abci.CheckTxType_Recheck})},
		{"commit", abci.ToRequestCommit()},
		{"list_snapshots", abci.ToRequestListSnapshots(&abci.RequestListSnapshots{})},
		{"offer_snapshot", abci.ToRequestOfferSnapshot(&abci.RequestOfferSnapshot{Snapshot: &abci.Snapshot{Height: 9, Format: 1, Chunks: 2, Hash: fill(1, 32)}, AppHash: fill(2, 32)})},
		{"load_snapshot_chunk", abci.ToRequestLoadSnapshotChunk(&abci.RequestLoadSnapshotChunk{Height: 9, Format: 1, Chunk: 1})},
		{"apply_snapshot_chunk", abci.ToRequestApplySnapshotChunk(&abci.RequestApplySnapshotChunk{Index: 1, Chunk: fill(1, 9), Sender: "peer"})},
		{"prepare_proposal", abci.ToRequestPrepareProposal(&abci.RequestPrepareProposal{MaxTxBytes: 4 << 20, Txs: txs, LocalLastCommit: extended, Misbehavior: misbehavior, Height: 77, Time: at, NextValidatorsHash: fill(1, 32), ProposerAddress: fill(2, 20)})},
		{"process_proposal", abci.ToRequestProcessProposal(&abci.RequestProcessProposal{Txs: txs, ProposedLastCommit: votes, Misbehavior: misbehavior, Hash: fill(3, 32), Height: 77, Time: at, NextValidatorsHash: fill(1, 32), ProposerAddress: fill(2, 20)})},
		{"extend_vote", &abci.Request{Value: &abci.Request_ExtendVote{ExtendVote: &abci.RequestExtendVote{Hash: fill(3, 32), Height: 77, Time: at, Txs: txs, ProposedLastCommit: votes}}}},
		{"verify_vote_extension", &abci.Request{Value: &abci.Request_VerifyVoteExtension{VerifyVoteExtension: &abci.RequestVerifyVoteExtension{Hash: fill(3, 32), ValidatorAddress: fill(1, 20), Height: 77, VoteExtension: fill(4, 3)}}}},
		{"finalize_block", abci.ToRequestFinalizeBlock(&abci.RequestFinalizeBlock{Txs: txs, DecidedLastCommit: votes, Misbehavior: misbehavior, Hash: fill(3, 32), Height: 77, Time: at, NextValidatorsHash: fill(1, 32), ProposerAddress: fill(2, 20)})},
	}
	results := []*abci.ExecTxResult{{}, {Code: 1, Log: "has 5, needs 6", Codespace: "insufficient-balance"}, {}}
	responses := []struct {
		name     string
		response *abci.Response
	}{
		{"exception", abci.ToResponseException("cannot")},
		{"echo", abci.ToResponseEcho("héllo")},
		{"flush", abci.ToResponseFlush()},
		{"info", abci.ToResponseInfo(&abci.ResponseInfo{Data: "dds", Version: "1.2.3", AppVersion: 1, LastBlockHeight: 1 << 33, LastBlockAppHash: fill(8, 32)})},
		{"init_chain", abci.ToResponseInitChain(&abci.ResponseInitChain{AppHash: fill(8, 32)})},
		{"query", abci.ToResponseQuery(&abci.ResponseQuery{Code: 0, Key: fill(5, 33), Value: fill(6, 70), ProofOps: &crypto.ProofOps{Ops: []crypto.ProofOp{{Type: "dds/bucket-tree/v1", Key: fill(5, 33), Data: fill(7, 200)}}}, Height: 77})},
		{"query_refused", abci.ToResponseQuery(&abci.ResponseQuery{Code: 1, Log: "no", Height: 77, Codespace: "no-such-path"})},
		{"check_tx", abci.ToResponseCheckTx(&abci.ResponseCheckTx{Code: 1, Log: "the next nonce is 4", Codespace: "bad-nonce"})},
		{"commit", abci.ToResponseCommit(&abci.ResponseCommit{})},
		{"list_snapshots", abci.ToResponseListSnapshots(&abci.ResponseListSnapshots{})},
		{"offer_snapshot", abci.ToResponseOfferSnapshot(&abci.ResponseOfferSnapshot{Result: abci.ResponseOfferSnapshot_REJECT})},
		{"load_snapshot_chunk", abci.ToResponseLoadSnapshotChunk(&abci.ResponseLoadSnapshotChunk{})},
		{"apply_snapshot_chunk", abci.ToResponseApplySnapshotChunk(&abci.ResponseApplySnapshotChunk{Result: abci.ResponseApplySnapshotChunk_ABORT})},
		{"prepare_proposal", abci.ToResponsePrepareProposal(&abci.ResponsePrepareProposal{Txs: txs})},
		{"process_proposal_accept", abci.ToResponseProcessProposal(&abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_ACCEPT})},
		{"process_proposal_reject", abci.ToResponseProcessProposal(&abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_REJECT})},
		{"extend_vote", &abci.Response{Value: &abci.Response_ExtendVote{ExtendVote: &abci.ResponseExtendVote{}}}},
		{"verify_vote_extension", &abci.Response{Value: &abci.Response_VerifyVoteExtension{VerifyVoteExtension: &abci.ResponseVerifyVoteExtension{Status: abci.ResponseVerifyVoteExtension_ACCEPT}}}},
		{"finalize_block", abci.ToResponseFinalizeBlock(&abci.ResponseFinalizeBlock{TxResults: results, AppHash: fill(8, 32)})},
	}
	out := map[string][]vector{}
	for _, each := range requests {
		out["requests"] = append(out["requests"], vector{each.name, frame(each.request)})
	}
	for _, each := range responses {
		out["responses"] = append(out["responses"], vector{each.name, frame(each.response)})
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(out); err != nil {
		panic(err)
	}
}
