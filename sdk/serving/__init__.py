"""A policy lent to other processes and machines over a websocket, in openpi's protocol; and the client, `RemotePolicy`.

Nothing here is loaded before it is used; `websockets` and `msgpack` come with `pip install 'roboalign[serve]'`.
"""
