"""Who is in a channel: users, each with the number of its clients that joined.

The compiled core knows subscribers, not users, and offers no walk over them; this is the Python side of the same
membership, kept in step by the hub at join, leave and disconnect and read only by `presence` requests. Pure: no I/O,
no clock. Users are kept in the order in which they first joined, so a page of the first `limit` of them is stable
while nobody leaves.
"""

from __future__ import annotations

from itertools import islice


class Presence:
    """The users of one channel. Every operation but `users` is O(1).

    While there is one user only, as in most of very many channels, it is kept without a dict, which takes 200 bytes.
    """

    __slots__ = ("_clients_by_user", "_only_user", "clients")

    def __init__(self) -> None:
        self._clients_by_user: dict[str, int] | None = None
        self._only_user = ""  # whose all clients are, while there is no dict
        self.clients = 0
        """Number of clients in the channel, all users together."""

    def add(self, user: str) -> bool:
        """Count one more client of `user`. True if it is the user's first in this channel."""
        counts = self._clients_by_user
        self.clients += 1
        if counts is None:
            if self.clients == 1:
                self._only_user = user
                return True
            if user == self._only_user:
                return False
            counts = self._clients_by_user = {self._only_user: self.clients - 1}
        count = counts.get(user, 0)
        counts[user] = count + 1
        return count == 0

    def remove(self, user: str) -> bool:
        """Count one client of `user` less. True if it was the user's last in this channel.

        Raises KeyError for a user who isn't there: that is a bug of the caller, never input.
        """
        counts = self._clients_by_user
        if counts is None:
            if not self.clients or user != self._only_user:
                raise KeyError(user)
            self.clients -= 1
            return self.clients == 0
        count = counts[user]
        self.clients -= 1
        if count > 1:
            counts[user] = count - 1
            return False
        del counts[user]
        if not counts:
            self._clients_by_user = None
        return True

    def users(self, limit: int) -> list[str]:
        """The first `limit` users in the order they joined; O(limit), however many there are."""
        if self._clients_by_user is None:
            return [self._only_user] if self.clients and limit > 0 else []
        return list(islice(self._clients_by_user, limit))

    def __len__(self) -> int:
        """Number of different users."""
        return min(self.clients, 1) if self._clients_by_user is None else len(self._clients_by_user)
