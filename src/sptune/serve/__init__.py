"""Serving adapters over HTTP with Ray Serve: `sptune serve`.

adapter_store.py   which adapters are served: a folder that all replicas read
replica.py         one process with the backbone and all adapters: batches requests and answers them
http_api.py        requests, answers and errors as JSON
server.py          starts Ray Serve and stops it
"""
