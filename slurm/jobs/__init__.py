"""Jobs: what they do, as which ranks, how they end and whether they are run again.

exit_reason.py  How jobs that have left the queue ended, and in one line why
interpreter.py  Python processes that jobs start: with our code in any directory
jobs.py         What jobs do
ranks.py        Making a Slurm
records.py      Where jobs live
requeue.py      Whether a training job that stopped is run again, decided from what it noted abo
throughput.py   What runs have measured of themselves
"""
