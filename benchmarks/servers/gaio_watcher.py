"""gaio, through its public API: the loops are in proactor.py."""

from typing import TYPE_CHECKING, cast

import gaio

from . import common, proactor

if TYPE_CHECKING:
    from gaio import BackendName


def main() -> None:
    options = common.start()
    proactor.serve(gaio.Watcher(backend=cast("BackendName", options.backend)), options)


if __name__ == "__main__":
    main()
