"""What a fuzz target is built from, for whoever builds one."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = {
    "image": ["image_target.c", "image_edits.c", "image_seeds.c"],
    "pump": ["pump_target.c", "image_seeds.c"],
}
# A target has a clock and random numbers of its own, the same in every run.
LINK_FLAGS = ["-pthread", "-Wl,--wrap=clock_gettime,--wrap=getrandom", "-lxxhash", "-luring", "-llz4", "-lzstd"]


def core_sources() -> list[pathlib.Path]:
    return [
        path
        for part in ("btree/native", "cowfs/native")
        for path in sorted((ROOT / part).glob("*.c"))
        if not path.name.startswith("binding")
    ]


def sources_of(name: str) -> list[pathlib.Path]:
    """Without what drives it."""
    own = [ROOT / "tests/fuzz" / source for source in TARGETS[name]]
    included = {"pump_device.c"} if name == "pump" else set()
    return [path for path in core_sources() if path.name not in included] + own
