"""What a session costs a request of each front: one small application a framework, driven in process through its server's protocol.

`work.py` says what the application does, `driving.py` sends requests, a module a framework puts both together, `serving.py` is the
process in which they run, `redis_server.py` what they are compared with, and `costs.py` takes the differences.
"""
