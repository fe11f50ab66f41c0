"""A student's weights at some moments of its training: files in a folder of its run, named by their step."""

from pathlib import Path

from torch import Tensor

from dfkd.formats.run_records import HINT, RESULT, Finished, read_result
from dfkd.system.checksums import check_file
from dfkd.system.files import PARTIAL, make_folder, replacing

KEPT = "weights"
"""The folder in a run."""


class WeightKeeper:
    """Writes weights before the first step and at `count` more moments, the last step among them, evenly spread."""

    def __init__(self, folder: Path, steps: int, count: int) -> None:
        self._folder = folder / KEPT
        self._moments = {round(k * steps / count) for k in range(count + 1)}

    def due(self, step: int) -> bool:
        """Whether weights are kept after so many steps."""
        return step in self._moments

    def write(self, step: int, weights: dict[str, Tensor]) -> None:
        """Keep them; those of a step that is taken again are replaced."""
        from safetensors.torch import save

        make_folder(self._folder)
        with replacing(self._folder / f"{step:07d}.safetensors") as partial:
            partial.write_bytes(save(weights))


def kept_files(run: Path) -> dict[int, Path]:
    """The files of kept weights by their step; none where the run keeps none."""
    found = {int(file.stem): file for file in (run / KEPT).glob("*.safetensors") if file.stem.isdecimal()}
    return dict(sorted(found.items()))


def checked_files(run: Path) -> dict[int, Path]:
    """The same of a finished run. Raises: RequestError for a file that is not what was written."""
    found = kept_files(run)
    written = read_result(run, Finished).files if found and (run / RESULT).exists() else {}
    for file in found.values():
        if (entry := written.get(f"{KEPT}/{file.name}")) is not None:
            check_file(file, entry, HINT)
    return found


def remove_half_written(run: Path) -> None:
    """Remove what a killed command has left half written."""
    for file in (run / KEPT).glob(f"*{PARTIAL}"):
        file.unlink()
