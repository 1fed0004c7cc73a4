"""Who may talk to this node: secrets and certificates, the proof of them, and the encryption around every connection.

A node has one of three *guards*: a shared secret (`shared`), a certificate of the cluster's own authority (`certified`), or
none, and then it stays on loopback (`open`). Above a guard nobody asks how friends are told: a connection has an identity once
it is admitted, and whatever it says later of itself must agree with that.
"""
