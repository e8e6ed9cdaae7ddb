"""The ``difflm`` command."""


def main() -> int:
    raise SystemExit("not there yet")


if __name__ == "__main__":
    main()
