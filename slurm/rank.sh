#!/usr/bin/env bash
# One rank, on the NUMA node and NIC of its local number where the cluster's config names them, then the command.
local_rank=${LOCAL_RANK:-$SLURM_LOCALID}
read -ra numa <<<"${GLMV_NUMA_OF_RANK:-}"
read -ra nic <<<"${GLMV_NIC_OF_RANK:-}"
if ((${#nic[@]})); then export NCCL_IB_HCA=${nic[local_rank]}; fi
if ((${#numa[@]})); then exec numactl --cpunodebind="${numa[local_rank]}" --membind="${numa[local_rank]}" "$@"; fi
exec "$@"
