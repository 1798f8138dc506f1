"""DNS server: it has the authority over one small zone, by UDP and by TCP.

    python3 -m examples.dns_server --port 5353
    dig @127.0.0.1 -p 5353 www.example.test AAAA

Over UDP one socket serves everybody: each result tells who has asked, and the answer goes to that address. What has no
room in a datagram is cut off, which the client is told, and it asks again by TCP, on the same port. A question that is
none gets no more than an error, and nobody waits for an answer that was lost: DNS asks again. (RFC 1035; EDNS of
RFC 6891, for larger datagrams.)
"""
