"""WSGI server (PEP 3333): HTTP/1.1 for an application that runs in a pool of threads.

    python3 -m examples.wsgi_server module:application --port 8000 --threads 8

Without an application it serves a small one of its own. It knows keep-alive, pipelining, `Expect: 100-continue` and
chunks in both directions: http1.py. What becomes of each client is in server.py.

The I/O and the application share one pool of threads, leader_followers.py: an application that answers at once costs no
change of threads, and one that waits holds nobody up. Whoever ran it writes the answer.

Memory. A body that is large is in a temporary file before the application runs. When a client leaves more than 256 KiB
of its answer untaken, the thread that has more waits. A client is cut off when for `--timeout` seconds it neither sends
what is missing nor takes what waits for it, or when the head of a request takes it longer.

Ctrl-C or SIGTERM: nobody new is accepted, idle clients are let go of, the others get the answer to what they have begun
to ask. After `--grace` seconds, or with the second signal, the rest is cut off.
"""
