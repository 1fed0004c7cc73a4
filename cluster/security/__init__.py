"""Who may talk to this node: secrets and certificates, the proof of them, and the encryption around every connection.

A node has a guard (`guards.py`): a secret that all nodes share, or a certificate of the cluster's own authority; or it has none, and then it
stays on loopback. Above the guard nobody asks how friends are told: a connection has an identity once it is admitted, and whatever it says later
of itself must agree with that.
"""
