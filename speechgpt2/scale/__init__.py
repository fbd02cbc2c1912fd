"""Several engines behind one address, on Ray Serve: where they run, which of them a session goes to.

replica.py     one replica: an engine and the server's application over it; it drains when Ray stops it
router.py      a session goes to the replica with the most room
deployment.py  from `ServerConfig` to a deployment that runs; starting and stopping it

Placement, health and the number of replicas are Ray's affair. Who is let in is ours: each replica refuses at once what
it has no slot for, since Ray would leave it hanging.
"""
