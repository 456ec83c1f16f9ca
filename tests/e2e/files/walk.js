// Prints lines as walk.py does, but for extended attributes, which Node.js cannot read.
const fs = require('fs'), crypto = require('crypto');
const options = { bigint: true };
const root = fs.lstatSync('/', options).dev, found = [];
function walk(path) {
    found.push(path);
    for (const name of fs.readdirSync(path)) {
        const child = (path == '/' ? '' : path) + '/' + name, status = fs.lstatSync(child, options);
        if (!status.isDirectory()) found.push(child);
        else if (status.dev == root) walk(child);
    }
}
walk('/');
const hex = text => Buffer.from(text).toString('hex'), names = new Map();
for (const path of found.map(path => path.slice(1)).sort()) {
    const full = '/' + path, s = fs.lstatSync(full, options), inode = `${s.dev}:${s.ino}`;
    if (!names.has(inode)) names.set(inode, path);
    const data = s.isFile() ? crypto.createHash('sha256').update(fs.readFileSync(full)).digest('hex') : '-';
    console.log(hex(path), '0o' + s.mode.toString(8), `${s.uid} ${s.gid} ${s.mtimeNs}`, s.isDirectory() ? 0 : `${s.nlink}`,
        `${s.rdev}`, s.isFile() ? `${s.size}` : 0, data, s.isSymbolicLink() ? hex(fs.readlinkSync(full)) : '-', '-',
        hex(names.get(inode)));
}
