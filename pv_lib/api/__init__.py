"""What HTTP answers about jobs.

routes      the table of routes
parameters  query parameters, JSON bodies, submissions: read and checked
handlers    what each route answers
caches      responses that are sent again: log tails, lists
view        a record as the API shows it
status      the status of the whole
feeds       what live streams carry
schemas     JSON schemas of what is read and answered
openapi     the OpenAPI document
"""
