#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --error=/project/all/debug/slurm/jobs/%j_0_log.err
#SBATCH --job-name=paper-data-photographs-shares
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/project/all/debug/slurm/jobs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=30

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
export PYTHONPATH=/project/all/debug/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all/debug $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/debug/slurm/jobs/%j_%t_log.out --error /project/all/debug/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/debug/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_data-photographs-shares
#SBATCH --error=/project/all/debug/slurm/jobs/%j_0_log.err
#SBATCH --job-name=paper-data-photographs
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/project/all/debug/slurm/jobs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=30

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
export PYTHONPATH=/project/all/debug/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all/debug $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/debug/slurm/jobs/%j_%t_log.out --error /project/all/debug/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/debug/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:JOB_OF_data-photographs
#SBATCH --error=/project/all/debug/slurm/jobs/%j_0_log.err
#SBATCH --job-name=paper-rdm_figure2-table
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/project/all/debug/slurm/jobs/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=30

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
export PYTHONPATH=/project/all/debug/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all/debug $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/debug/slurm/jobs/%j_%t_log.out --error /project/all/debug/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=1 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/debug/slurm/jobs
