"""Streams pushed to other servers by WHIP (RFC 9725), to hosts that the operator allows."""
