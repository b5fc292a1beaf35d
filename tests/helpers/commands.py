"""What a command says."""


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("cm3: ")
    assert err.count("\n") == 1
    assert message in err
