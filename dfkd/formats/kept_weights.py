"""A student's weights at several steps of its training, as files in the run's folder."""

from pathlib import Path

from torch import Tensor

from dfkd.formats.run_records import HINT, KEPT, RESULT, Finished, read_result
from dfkd.system.checksums import check_file
from dfkd.system.files import PARTIAL, make_folder, replacing


class WeightKeeper:
    """Writer of the student's weights: before the first step and after `count` steps at even distances."""

    def __init__(self, folder: Path, steps: int, count: int) -> None:
        self._folder = folder / KEPT
        self._moments = {round(k * steps / count) for k in range(count + 1)}

    def due(self, step: int) -> bool:
        """Return whether weights are kept after `step` steps."""
        return step in self._moments

    def write(self, step: int, weights: dict[str, Tensor]) -> None:
        """Write the weights after `step` steps. A resumed run overwrites the files of repeated steps."""
        from safetensors.torch import save

        make_folder(self._folder)
        with replacing(self._folder / f"{step:07d}.safetensors") as partial:
            partial.write_bytes(save(weights))


def kept_files(run: Path) -> dict[int, Path]:
    """Return the files of kept weights by step. The result is empty if the run keeps none."""
    found = {int(file.stem): file for file in (run / KEPT).glob("*.safetensors") if file.stem.isdecimal()}
    return dict(sorted(found.items()))


def checked_files(run: Path) -> dict[int, Path]:
    """Return the files of kept weights by step, after a check.

    Raises: RequestError if a file of a finished run was changed.
    """
    found = kept_files(run)
    written = read_result(run, Finished).files if found and (run / RESULT).exists() else {}
    for file in found.values():
        if (entry := written.get(f"{KEPT}/{file.name}")) is not None:
            check_file(file, entry, HINT)
    return found


def remove_half_written(run: Path) -> None:
    """Remove temporary files of a killed command."""
    for file in (run / KEPT).glob(f"*{PARTIAL}"):
        file.unlink()
