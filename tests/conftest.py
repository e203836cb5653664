"""Every test begins with an interrupt that interrupts, whoever started pytest.

A shell without job control starts background commands with SIGINT ignored, and children inherit that: tests of Ctrl-C would
then test the shell.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
