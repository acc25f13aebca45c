"""A web server on this machine, for as long as a test runs."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback:
    """Answer requests on a free port of 127.0.0.1.

    Args:
        handler: What answers them.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.url = f'http://127.0.0.1:{self.http.server_address[1]}'
        threading.Thread(target=self.http.serve_forever, kwargs={'poll_interval': 0.01}).start()

    def stop(self) -> None:
        """Free the port."""
        self.http.shutdown()
        self.http.server_close()
