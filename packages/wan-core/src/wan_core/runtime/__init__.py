"""Everything applied to models from outside: devices, placement, kernels, attention backends, sharding."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.runtime.apply import prepare_model
    from wan_core.runtime.attention_choice import choose_attention_backend
    from wan_core.runtime.counting import Counts, OperationCounter
    from wan_core.runtime.devices import (
        DTYPES,
        device_facts,
        free_memory,
        host_memory,
        peak_memory,
        resolve_device,
        resolve_dtype,
    )
    from wan_core.runtime.fsdp import (
        DividedReading,
        RowReading,
        Shard,
        divided_as,
        is_divided,
        is_sharded,
        mean_over_processes,
        shard_model,
        whole_tensor,
    )
    from wan_core.runtime.host_copy import HostCopy
    from wan_core.runtime.launch import INTERRUPTED, Launch, is_first_to_say, launched, made_by_first, process_group
    from wan_core.runtime.mesh import make_mesh, shares_of
    from wan_core.runtime.onnx import OnnxNetwork
    from wan_core.runtime.optional_packages import optional_package
    from wan_core.runtime.placement import Between, Placed, release_cached_memory
    from wan_core.runtime.processes import Processes, plan_processes
    from wan_core.runtime.route import Route, Stop
    from wan_core.runtime.simulation import SimulatedGPU, simulated_gpu
    from wan_core.runtime.start import start_processes
    from wan_core.runtime.step_cache import step_cached
    from wan_core.runtime.together import Together, results_of_all, working_together
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "DTYPES",
    "INTERRUPTED",
    "Between",
    "Counts",
    "DividedReading",
    "HostCopy",
    "Launch",
    "OnnxNetwork",
    "OperationCounter",
    "Placed",
    "Processes",
    "Route",
    "RowReading",
    "Shard",
    "SimulatedGPU",
    "Stop",
    "Together",
    "choose_attention_backend",
    "device_facts",
    "divided_as",
    "free_memory",
    "host_memory",
    "is_divided",
    "is_first_to_say",
    "is_sharded",
    "launched",
    "made_by_first",
    "make_mesh",
    "mean_over_processes",
    "optional_package",
    "peak_memory",
    "plan_processes",
    "prepare_model",
    "process_group",
    "release_cached_memory",
    "resolve_device",
    "resolve_dtype",
    "results_of_all",
    "shard_model",
    "shares_of",
    "simulated_gpu",
    "start_processes",
    "step_cached",
    "whole_tensor",
    "working_together",
]
