"""A scripted conversation with the monitor (nestor --monitor unix:PATH)."""
import socket
import time

PROMPT = "(nestor) "


class Monitor:
    def __init__(self, path, timeout=60):
        for _ in range(200):
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError:
                self.socket.close()
                time.sleep(0.05)
        else:
            raise AssertionError("the monitor does not listen at " + path)
        self.socket.settimeout(timeout)
        self.greeting = self.read()

    def read(self):
        """What comes up to the next prompt, or to the end."""
        got = b""
        while not got.endswith(PROMPT.encode()):
            data = self.socket.recv(65536)
            if not data:
                self.socket.close()
                return got.decode(errors="replace")
            got += data
        return got[:-len(PROMPT)].decode(errors="replace")

    def __call__(self, command):
        self.socket.sendall(command.encode() + b"\n")
        return self.read()

    def go(self):
        """Lets the machine run to its next stop, or its end, which is returned."""
        return self("run")

    def close(self):
        self.socket.close()
