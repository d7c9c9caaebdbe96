"""What goes wrong with data: a whole data set that cannot be used, or one sample that is set aside."""

from __future__ import annotations


class DataError(Exception):
    """A data set, shard or index that cannot be used; the run ends with the data exit code.

    `where` names the file or key, `reason` says what is wrong and, where there is one, the way out.
    """

    exit_code = 65

    def __init__(self, where: object, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = str(where)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        return type(self), (self.where, self.reason)


class SampleError(Exception):
    """One bad sample or medium: it is quarantined, the run goes on. `key` names the sample or member."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        return type(self), (self.key, self.reason)
