"""The HTTP server: sockets, requests, access. Knows no job.

server      accepts connections; one thread for each, up to a quota
connection  one client's requests, read and answered
transport   a socket with a deadline on every wait
wire        the bytes of HTTP/1.1, parsed strictly
gate        which requests are accepted
limits      limits and quotas
idle        which connections wait for their client, and can be evicted
follow      live streams: many sockets, one thread
"""
