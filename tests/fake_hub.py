"""A Hub on the loopback interface: as much of its API as the client uses for these tests."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

from loopback import Loopback


class FakeHub(Loopback):
    """Repositories as lists of commits, each a mapping of paths to contents."""

    def __init__(self):
        self.commits, self.refs, self.uploads = {}, {}, {}
        self.requests = []  # method, path, Range
        self.fail_with, self.break_after, self.spoil = 0, 0, None
        self.fail_at, self.error_code = '', None  # only paths that hold this; what the Hub calls it
        owner = self

        class Handler(Answers):
            hub = owner

        super().__init__(Handler)

    def commit(self, files):
        """Add files to the last commit of main; returns the new commit's hash."""
        old = self.commits.get(self.refs.get('main'), {})
        name = hashlib.sha1(f'{len(self.commits)}'.encode()).hexdigest()
        self.commits[name] = {**old, **files}
        self.refs['main'] = name
        return name


class Answers(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.download(body=False)

    def do_GET(self):
        self.download(body=True)

    def do_POST(self):
        body = self.read()
        self.note()
        if self.hub.fail_with:
            self.reply({'error': 'no'}, self.hub.fail_with)
        elif self.path == '/api/repos/create':
            self.reply({'url': f'{self.hub.url}/org/name', 'name': 'org/name'})
        elif self.path == '/api/validate-yaml':
            self.reply({'errors': [], 'warnings': []})
        elif '/preupload/' in self.path:
            files = json.loads(body)['files']
            self.reply({'files': [
                {'path': f['path'], 'shouldIgnore': False,
                 'uploadMode': 'lfs' if f['path'].endswith('.safetensors') else 'regular'}
                for f in files
            ]})  # fmt: skip
        elif self.path.endswith('/info/lfs/objects/batch'):
            self.reply({'transfer': 'basic', 'objects': [
                {**o, 'actions': {'upload': {'href': f'{self.hub.url}/upload/{o["oid"]}'}}}
                for o in json.loads(body)['objects']
            ]})  # fmt: skip
        elif '/commit/' in self.path:
            files = {}
            for line in body.splitlines():
                item = json.loads(line)
                value = item['value']
                if item['key'] == 'file':
                    files[value['path']] = base64.b64decode(value['content'])
                elif item['key'] == 'lfsFile':
                    files[value['path']] = self.hub.uploads[value['oid']]
            commit = self.hub.commit(files)
            self.reply({'success': True, 'commitOid': commit, 'commitUrl':
                        f'{self.hub.url}/org/name/commit/{commit}'})  # fmt: skip
        elif '/tag/' in self.path:
            commit = self.path.rpartition('/')[2]
            self.hub.refs[json.loads(body)['tag']] = commit
            self.reply({})
        else:
            self.reply({'error': 'unknown'}, 404)

    def do_PUT(self):
        self.hub.uploads[self.path.rpartition('/')[2]] = self.read()
        self.note()
        self.reply({})

    def read(self):
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = b''
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def note(self):
        self.hub.requests.append((self.command, self.path, self.headers.get('Range')))

    def reply(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {'Content-Length': str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def download(self, body):
        self.note()
        hub = self.hub
        match = re.fullmatch(r'/org/name/resolve/([^/]+)/(.+)', self.path)
        if hub.fail_with and hub.fail_at in self.path:
            headers = {'X-Error-Code': hub.error_code} if hub.error_code else {}
            return self.reply({}, hub.fail_with, headers)
        if match is None:
            return self.reply({}, 404, {'X-Error-Code': 'RepoNotFound'})
        revision, name = unquote(match[1]), match[2]
        commit = hub.refs.get(revision, revision)
        if commit not in hub.commits:
            return self.reply({}, 404, {'X-Error-Code': 'RevisionNotFound'})
        if name not in hub.commits[commit]:
            return self.reply({}, 404, {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit})
        content = hub.commits[commit][name]
        if name.endswith('.safetensors'):
            etag = hashlib.sha256(content).hexdigest()
        else:
            etag = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
        if name == hub.spoil:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {'ETag': f'"{etag}"', 'X-Repo-Commit': commit, 'Accept-Ranges': 'bytes'}
        start = int(re.match(r'bytes=(\d+)-', self.headers.get('Range') or 'bytes=0-')[1])
        if start:
            headers['Content-Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
        part = content[start:]
        if body and hub.break_after and len(part) > hub.break_after:
            headers['Content-Length'] = str(len(part))
            part, hub.break_after = part[: hub.break_after], 0
            self.close_connection = True
        if body:
            self.reply(part, 206 if start else 200, headers)
        else:
            self.reply(b'', 200, {**headers, 'Content-Length': str(len(content))})
        return None
