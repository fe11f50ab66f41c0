from dfkd.system.portable import portable


def test_portable_hides_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert portable("net@/home/somebody/w.pt") == "net@~/w.pt"
    assert portable("/home/somebody") == "~"
    assert portable("/mnt/home/somebody/w.pt") == "/mnt/home/somebody/w.pt"
    assert portable("/home/somebody-else/w.pt") == "/home/somebody-else/w.pt"
