"""Who is in a channel: users, each with the number of its clients that joined.

The core holds the membership, and knows subscribers but no users; this counts them by user, as a walk over 10,000
members for each `presence` request would be too long. The hub changes both together, at join and leave; there is one
place for each. A user without clients may be kept for a while (`announcements`). Pure: no I/O, no clock. Users are kept
in the order in which they first joined, so a page of the first `limit` of them is stable while nobody leaves.
"""

from __future__ import annotations

from itertools import islice

__all__ = ["Presence"]


class Presence:
    """The users of one channel. Every operation but `users` is O(1).

    While there is one user only, as in most of very many channels, it is kept without a dict, which takes 200 bytes.
    """

    __slots__ = ("_clients", "_clients_by_user", "_only_user")

    def __init__(self) -> None:
        self._clients_by_user: dict[str, int] | None = None
        self._only_user: str | None = None  # who is here while there is no dict
        self._clients = 0  # how many clients that one has

    def add(self, user: str) -> bool:
        """Count one more client of `user`. True if the user wasn't here."""
        counts = self._clients_by_user
        if counts is None:
            if self._only_user is None:
                self._only_user = user
                self._clients = 1
                return True
            if user == self._only_user:
                self._clients += 1
                return False
            counts = self._clients_by_user = {self._only_user: self._clients}
        count = counts.get(user)
        counts[user] = 1 if count is None else count + 1
        return count is None

    def remove(self, user: str, *, stays: bool = False) -> bool:
        """Count one client of `user` less. True if it was the user's last in this channel.

        stays: whether a user without clients is still here, until `drop`.

        Raises KeyError for a user without clients here: that is a bug of the caller, never input.
        """
        counts = self._clients_by_user
        count = counts.get(user, 0) if counts is not None else self._clients if user == self._only_user else 0
        if not count:
            raise KeyError(user)
        if counts is None:
            self._clients -= 1
        else:
            counts[user] -= 1
        if count == 1 and not stays:
            self.drop(user)
        return count == 1

    def drop(self, user: str) -> None:
        """Forget a user who has no clients."""
        counts = self._clients_by_user
        if counts is not None:
            del counts[user]
            if counts:
                return
            self._clients_by_user = None
        self._only_user = None

    def users(self, limit: int) -> list[str]:
        """The first `limit` users in the order they joined; O(limit), however many there are."""
        if self._clients_by_user is None:
            return [] if self._only_user is None or limit < 1 else [self._only_user]
        return list(islice(self._clients_by_user, limit))

    def __len__(self) -> int:
        """Number of different users."""
        return int(self._only_user is not None) if self._clients_by_user is None else len(self._clients_by_user)
