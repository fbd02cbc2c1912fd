"""Several replicas behind one address, on Ray Serve.

replica.py     one replica: an engine and a server on it; drains when Ray stops it
router.py      routes a session to the replica with the fewest sessions
deployment.py  starts and stops a deployment of a `ServerConfig`

Ray Serve places replicas, checks their health and scales their number. Admission is the server's: a replica rejects at
once a session for which it has no slot, where Ray would let it wait.
"""
