# Sourced by dist_train.sh and dist_test.sh.

has_gpu() {
    case "${CUDA_VISIBLE_DEVICES-all}" in '' | -1) return 1 ;; esac
    nvidia-smi -L 2>/dev/null | grep -q GPU
}

# launch PROCESSES SCRIPT [arguments]: run SCRIPT under torchrun.
launch() {
    local where
    if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
        where=(--standalone) # a free port, so that runs beside each other do not meet
    else
        where=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
            --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
    fi
    if ! has_gpu; then
        # Waiting OpenMP threads spin by default and take the cores from the other processes.
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
    fi
    PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" exec python -m torch.distributed.run \
        "${where[@]}" --nproc_per_node "$1" "$2" --launcher pytorch "${@:3}"
}
