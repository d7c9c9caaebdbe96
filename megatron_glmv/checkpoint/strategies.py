"""How megatron-core's dist_checkpointing writes and reads our files: its storage strategies, made safe."""

from __future__ import annotations

import queue
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy, LoadShardedStrategy
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from megatron_glmv.checkpoint.reader import Box, Checkpoint
from megatron_glmv.checkpoint.store import fault_point


class ShardWriter(TorchDistSaveShardedStrategy):
    """megatron-core's writer, in this process instead of a forked one, and without what it adds to the index."""

    def __init__(self, step: int) -> None:
        super().__init__("torch_dist", 1, thread_count=1)
        self._step = step

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any) -> AsyncRequest:
        index = save_state_dict_ret[1]
        if index is not None and hasattr(index, "all_local_plans"):
            del index.all_local_plans  # doubles the size of .metadata, to save a later save the planning
        request = super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret)
        buckets = len(writer.write_buckets)
        transforms = [writer.transforms] if hasattr(writer, "transforms") else []
        writer.checkpoint_dir = "."  # goes into .metadata: no absolute path of the machine that saved
        failure: list[Exception] = []
        finish = writer.finish

        def write(rank: int, staged: list[Any], results: Any) -> None:
            done: dict[int, Any] = {}
            for i in range(buckets):
                answers, count = queue.Queue(), queue.Queue()  # type: ignore[var-annotated]
                count.put(i)
                type(writer).write_preloaded_data(transforms, i, staged[i], answers, count, use_fsync=True)
                done[i] = answers.get()[1]
                if isinstance(done[i], Exception):
                    results.put(done[i])
                    return
            results.put(done)
            if rank == 0:
                fault_point("shard_written", self._step)

        def finish_or_record(metadata: Any, results: Any) -> None:
            fault_point("shards_written", self._step)
            try:
                finish(metadata, results)
            except Exception as error:  # raised on rank 0 alone, the others would wait
                failure.append(error)

        def raise_recorded() -> None:
            if failure:
                raise failure[0]

        writer.finish = finish_or_record
        async_fn = write if request.async_fn is not None else None
        return request._replace(async_fn=async_fn, finalize_fns=[*request.finalize_fns, raise_recorded])


class ShardReader(LoadShardedStrategy):
    """Fills sharded tensors through our reader: no pickle beyond the allow-list, and no collectives in between."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    def load(self, sharded_state_dict: Any, checkpoint_dir: Any) -> Any:
        shards = list(nested_values(sharded_state_dict))
        for shard in shards:
            shard.data = shard.data.detach()
        self._checkpoint.fill(
            Box(s.key, tuple(s.global_offset), s.data.view((1,) * s.prepend_axis_num + tuple(s.local_shape)))
            for s in shards
        )
        return dict_list_map_outplace(lambda shard: shard.data, sharded_state_dict)

    def load_tensors_metadata(self, checkpoint_dir: Any) -> Any:
        raise NotImplementedError

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True  # there are none

    def check_backend_compatibility(self, loaded_version: Any) -> None: ...

    def check_version_compatibility(self, loaded_version: Any) -> None: ...


class NoCommonFile(LoadCommonStrategy):
    """megatron-core's common.pt: not written by us, and never read."""

    def load_common(self, checkpoint_dir: Any) -> dict[str, Any]:
        return {}

    def load_sharded_objects(self, sharded_objects_state_dict: Any, checkpoint_dir: Any) -> Any:
        raise NotImplementedError

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True  # there are none

    def check_backend_compatibility(self, loaded_version: Any) -> None: ...

    def check_version_compatibility(self, loaded_version: Any) -> None: ...
