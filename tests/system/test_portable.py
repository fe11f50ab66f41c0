import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

from dfkd.system.names import convert
from dfkd.system.portable import below, expand, portable, spelled_as


def test_portable_hides_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert portable("net@/home/somebody/w.pt") == "net@~/w.pt"
    assert portable("/home/somebody") == "~"
    assert portable("/mnt/home/somebody/w.pt") == "/mnt/home/somebody/w.pt"
    assert portable("/home/somebody-else/w.pt") == "/home/somebody-else/w.pt"


def test_portable__writes_a_name_only_for_the_request_that_said_it(monkeypatch):
    """Whatever was expanded before, and whatever runs in another thread meanwhile."""
    monkeypatch.setenv("DATA", "/volumes/3/data")
    text = expand("$DATA/pool.npz")
    assert (text, portable(text)) == ("/volumes/3/data/pool.npz", "$DATA/pool.npz")
    assert portable("/volumes/3/data/pool.npz") == "/volumes/3/data/pool.npz"
    with spelled_as({"pool": (text,)}):
        assert portable({"a": ["/volumes/3/data/x"]}) == {"a": ["$DATA/x"]}
        with ThreadPoolExecutor(1) as other:
            assert other.submit(portable, "/volumes/3/data/x").result() == "/volumes/3/data/x"
        with spelled_as({"pool": ("/volumes/3/data/x",)}):
            assert portable("/volumes/3/data/x") == "/volumes/3/data/x"
        assert portable("/volumes/3/data/x") == "$DATA/x"
    assert portable("/volumes/3/data/x") == "/volumes/3/data/x"


def test_expanded__remembers_its_spelling_in_copies_and_folders(monkeypatch):
    monkeypatch.setenv("DATA", "/volumes/3/data")
    text = expand("net@${DATA}/t.pt")
    for copied in (copy.deepcopy(text), pickle.loads(pickle.dumps(text)), convert(text, str, "x")):
        assert (copied, portable(copied)) == ("net@/volumes/3/data/t.pt", "net@${DATA}/t.pt")
    assert portable(below(expand("$DATA/"), "runs", "a")) == "$DATA/runs/a"
    assert type(expand("plain")) is type(below("plain", "a")) is str


def test_expand__of_an_expanded_text_keeps_its_names(monkeypatch):
    """A pipeline's table is checked before and after its own options are added: its texts are expanded twice."""
    monkeypatch.setenv("POOLS", "/data/pools")
    twice = expand(expand("$POOLS/photos"))
    assert twice == "/data/pools/photos" and portable(twice) == "$POOLS/photos"
