"""The HTTP server: sockets, requests, access. Knows no job.

server      accepts; a thread for each connection, and no more than allowed
connection  reads requests and writes answers, each with a deadline
wire        the bytes of HTTP/1.1, parsed strictly
gate        who gets in
limits      what clients may use at most
follow      live streams: many sockets, one thread
"""
