"""Jobs: what they do, as which ranks, how they end and whether they are run again.

jobs.py         The jobs: training, and any other command of relaywave
ranks.py        Each task's rank, rendezvous address and port, network interface and scratch
requeue.py      Whether a job that stopped is run again, from its starts and the limits
health.py       Whether nodes are fit, tried before the ranks of training start
nvidia_smi.py   What is wrong with a node's GPUs
hosts.py        On which hosts a job crashed, and which of them its next start does without
batch_end.py    The end of every batch script: notes what was seen, and requeues the job
budget.py       The budget of a run in GPU-hours, and what its starts have used
notify.py       Telling people about jobs, by a command of the site's
watch.py        Looks after a run while it trains: evaluations, budget
exit_reason.py  How jobs that have left the queue ended, and in one line why
records.py      The records of jobs on disk: what was submitted, each start and end
local.py          Jobs that are processes of this machine: whether they run, stopping them
throughput.py   Measured throughput: to check time limits, and for goodput
interpreter.py  Python processes that jobs start: with our code in any directory
"""
