#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --comment='first try'
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=12
#SBATCH --error=/project/run/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=run
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=me@example.org
#SBATCH --mem=200G
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/project/run/slurm/jobs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
module load cuda/12.4
ulimit -c 0
ulimit -n 65536
export PYTHONSAFEPATH=1
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export NCCL_DEBUG=WARN
export RELAYWAVE_SITE=/project/site.toml
export RELAYWAVE_INTERFACE=ib0
export RELAYWAVE_SCRATCH='/scratch/$SLURM_JOB_ID'
export PYTHONPATH=/project/run/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/run $code --trains --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; kill $watcher 2>/dev/null; wait $watcher; exit $code; }
trap : TERM USR1 USR2
python -P -m slurm.jobs.watch /project/run & watcher=$!
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT
SUBMITIT_EXECUTOR=slurm srun --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m slurm.jobs.health /project/run --gpus 8 || exit $?

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/run/slurm/jobs/%j_%t_log.out --error /project/run/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/run/slurm/jobs
