#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --array=0-3%4
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --error=/project/all/slurm/jobs/%A_%a_0_log.err
#SBATCH --job-name=quickstart-shares
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%A_%a_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%A_%a_%t_log.out --error /project/all/slurm/jobs/%A_%a_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_shares
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --job-name=quickstart-data
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_data
#SBATCH --error=/project/all/edm16/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-edm16
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/edm16/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/edm16/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all/edm16 $code --trains --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; kill $watcher 2>/dev/null; wait $watcher; exit $code; }
trap : TERM USR1 USR2
python -P -m slurm.jobs.watch /project/all/edm16 & watcher=$!
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT
SUBMITIT_EXECUTOR=slurm srun --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m slurm.jobs.health /project/all/edm16 --gpus 2 || exit $?

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/edm16/slurm/jobs/%j_%t_log.out --error /project/all/edm16/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/edm16/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_data
#SBATCH --error=/project/all/relay64/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-relay64
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/relay64/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/relay64/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all/relay64 $code --trains --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; kill $watcher 2>/dev/null; wait $watcher; exit $code; }
trap : TERM USR1 USR2
python -P -m slurm.jobs.watch /project/all/relay64 & watcher=$!
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT
SUBMITIT_EXECUTOR=slurm srun --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m slurm.jobs.health /project/all/relay64 --gpus 2 || exit $?

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/relay64/slurm/jobs/%j_%t_log.out --error /project/all/relay64/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/relay64/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_data
#SBATCH --error=/project/all/wavediff64/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-wavediff64
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/wavediff64/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/wavediff64/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all/wavediff64 $code --trains --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; kill $watcher 2>/dev/null; wait $watcher; exit $code; }
trap : TERM USR1 USR2
python -P -m slurm.jobs.watch /project/all/wavediff64 & watcher=$!
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT
SUBMITIT_EXECUTOR=slurm srun --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m slurm.jobs.health /project/all/wavediff64 --gpus 2 || exit $?

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/wavediff64/slurm/jobs/%j_%t_log.out --error /project/all/wavediff64/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/wavediff64/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_data
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-reference
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_edm16,afterok:JOB_OF_relay64
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-rdm-samples
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_wavediff64
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-wavediff-samples
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_reference,afterok:JOB_OF_edm16,afterok:JOB_OF_relay64
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-rdm
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:JOB_OF_reference,afterok:JOB_OF_wavediff64
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=quickstart-wavediff
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT
RELAYWAVE_PORT=$(python -P -m slurm.jobs.ranks) || exit 1
export RELAYWAVE_PORT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=12 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
#!/bin/bash

# Parameters
#SBATCH --account=diffusion
#SBATCH --chdir=/project
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:JOB_OF_rdm-samples,afterany:JOB_OF_wavediff-samples,afterany:JOB_OF_rdm,afterany:JOB_OF_wavediff
#SBATCH --error=/project/all/slurm/jobs/%j_0_log.err
#SBATCH --job-name=quickstart-table
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/project/all/slurm/jobs/%j_0_log.out
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
export PYTHONPATH=/project/all/slurm/code/CODE${PYTHONPATH:+:$PYTHONPATH}
end() { code=$?; trap '' TERM USR1 USR2; python -P -m slurm.jobs.batch_end /project/all $code --signal-seconds 120 --max-stalled 5 --max-crashes 10 --backoff-seconds 60; code=$?; exit $code; }
trap : TERM USR1 USR2
trap end EXIT

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /project/all/slurm/jobs/%j_%t_log.out --error /project/all/slurm/jobs/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=1 --cpu-bind=cores python -P -u -m submitit.core._submit /project/all/slurm/jobs
