"""Bytes to commands, replies and pushes to bytes. Pure functions; no I/O, no clock, no state.

``codec`` is all of the server's side as one `Codec`. ``commands`` is what clients say, ``replies`` what they are
answered, ``pushes`` what they are told unasked, ``lines`` how a frame holds one message or several (``_lines`` cuts
it), ``_depth`` how deep a JSON text nests, and ``client`` the mirror of all that for the client library.
"""
