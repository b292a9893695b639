"""What reaches the clients of this node: the hub as a broker sees it (`starlight.brokers.base.Deliverer`).

Whoever sent it, on whatever node, this is the one way to the core. The beginning of a message is kept with its sender,
so that the next one to the same channel costs one look. Compiled, so that this step costs a publication nothing: in a node
that is alone it is what `publish` of the broker is.
"""

from starlight import close_codes
from starlight.brokers.base import Present
from starlight.close_codes import ErrorCode
from starlight.ends import Cause
from starlight.errors import RequestError

cdef enum:
    HEADS_LIMIT = 32             # kept of a sender, about 150 bytes each; beyond, all are built anew, half a microsecond each

cdef str EVERYONE = ""           # where the heads of broadcasts and directs are kept among those of channels:
cdef str DIRECT = " "            # no channel is called so


cdef class Delivery:
    """See `Deliverer` for what each call means.

    Args:
        hub: whose clients and channels.
        core: the write path.
        codecs: what the node speaks: a message has a head and a tail for each.
    """
    cdef object hub
    cdef dict users              # the hub's
    cdef dict channels           # the hub's
    cdef object counts           # the hub's
    cdef object codecs
    cdef object tail
    cdef object everyone
    cdef object core_publish
    cdef object core_send
    cdef object core_send_many

    def __init__(self, hub, core, codecs):
        self.hub = hub
        self.codecs = codecs
        self.tail = codecs.of_each(lambda codec: codec.tail)
        self.users = hub.users
        self.channels = hub.channels
        self.counts = hub.counts
        self.everyone = core.everyone
        self.core_publish = core.publish
        self.core_send = core.send
        self.core_send_many = core.send_many

    def deliver_publication(self, str channel not None, sender, data, /):
        record = self.channels.get(channel)
        subscribers = 0
        if record is not None:
            head = (<dict>sender.heads).get(channel)
            if head is None:
                head = keep(sender, channel, publication_head(self.codecs, channel, sender.user))
            subscribers = self.core_publish(record.members, head, data, self.tail)
        if not subscribers:
            self.counts.unheard += 1
        return subscribers

    def deliver_direct(self, str user not None, sender, data, /):
        cdef dict clients = self.users.get(user)
        if clients is None:
            raise RequestError(ErrorCode.NOT_CONNECTED, "no client of that user is connected")
        head = (<dict>sender.heads).get(DIRECT)
        if head is None:
            head = keep(sender, DIRECT, direct_head(self.codecs, sender.user))
        self.counts.directs += 1
        if len(clients) == 1:
            for client in clients:
                self.core_send(client.subscriber, head, data, self.tail)
        else:
            self.core_send_many([client.subscriber for client in clients], head, data, self.tail)
        return len(clients)

    def deliver_broadcast(self, sender, data, /):
        head = (<dict>sender.heads).get(EVERYONE)
        if head is None:
            head = keep(sender, EVERYONE, broadcast_head(self.codecs, sender.user))
        return self.core_publish(self.everyone, head, data, self.tail)

    def list_present(self, str channel not None, int limit, /):
        record = self.channels.get(channel)
        if record is None or record.listed is None:
            return Present([], 0)
        return Present(record.listed.users(limit), len(record.members))

    def end_revoked(self, str kind not None, str name not None, double seconds, str by not None, /):
        clients = self.clients_of(kind, name)
        cause = Cause("revoked", by)
        for client in clients:
            client.connection.close(close_codes.DISCONNECTED, cause=cause)
        revocations = self.hub.logins.revocations
        if kind == "user":
            revocations.add_user(name, seconds, max([client.login.issued for client in clients], default=0.0))
        else:
            revocations.add_token(name, seconds)
        return len(clients)

    def clients_of(self, str kind not None, str name not None):
        """The clients of this node that a revocation means, as a list."""
        if kind == "user":
            return list(self.users.get(name, ()))
        return [client for client in self.hub.clients() if client.login.token_id == name]


cdef object keep(sender, str name, head):
    """Keep the head of a sender under a name; returns it."""
    cdef dict heads = sender.heads
    if len(heads) >= HEADS_LIMIT:
        heads.clear()
    heads[name] = head
    return head


def publication_head(codecs, channel, user):
    return codecs.of_each(lambda codec: codec.publication_head(channel, user))


def broadcast_head(codecs, user):
    return codecs.of_each(lambda codec: codec.broadcast_head(user))


def direct_head(codecs, user):
    """A message of the application to a user is no direct but a `server` push."""
    return codecs.of_each(lambda codec: codec.server_head() if user is None else codec.direct_head(user))
