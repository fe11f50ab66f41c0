"""`dfkd inspect`: the content of a selection on the terminal and as a page, or the page of a soft decision tree."""

from dfkd.config import InspectConfig
from dfkd.data import Pool, open_pool
from dfkd.formats.overwrite import check_output
from dfkd.formats.remote_folder import folder_of
from dfkd.formats.run_records import CONFIG
from dfkd.formats.verify import verify
from dfkd.report.contents import Contents, read, terminal_text
from dfkd.report.inspection_page import write
from dfkd.report.markup import page_path
from dfkd.system.console import answer, say
from dfkd.system.errors import RequestError


def run(config: InspectConfig) -> None:
    """Print the content of a selection, and write its page to `--out`.

    For a run whose student is a soft decision tree, write the page of the tree. With `--verify`, print what was
    verified. Raises: RequestError if the folder is neither of the two, or if a verified file is not what was written.
    """
    if config.verify:
        if config.out is not None:
            raise RequestError(f"--out {config.out} is for a selection's page; --verify makes none")
        answer(verify(folder_of(config.folder)))
        return
    if config.pool and config.out is None:
        raise RequestError("--pool changes nothing without --out: its images are shown on the page")
    path = None if config.out is None else page_path(config.out)
    if config.out is not None:
        check_output(config.out, "--out", (config.folder, *config.pool))
    folder = folder_of(config.folder)
    if (folder / CONFIG).exists():
        from dfkd.report.tree_page import write_tree  # imports torch, which no selection needs

        write_tree(config, path)
        return
    contents = read(folder)
    answer(terminal_text(contents))
    if path is not None:
        write(path, config.folder, contents, _opened(config.pool, contents) if config.pool else None)
        say(f"wrote {path}")


def _opened(named: tuple[str, ...], contents: Contents) -> Pool:
    """Open the pool of a selection. Raises: RequestError if the pool is another one."""
    scored, manifest = contents.scored, contents.shards.manifest
    if scored is None:
        raise RequestError("--pool changes nothing: the images of this selection are not from a pool")
    image = manifest.image
    pool = open_pool(named, image_size=image.size, channels=image.channels, bits=image.bits)
    if len(pool) != scored.images:
        raise RequestError(f"--pool has {len(pool):,} images, and the selection is of a pool of {scored.images:,}")
    return pool
