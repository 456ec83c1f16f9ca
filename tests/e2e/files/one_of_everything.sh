# A file of every kind, and names, sizes, owners, modes and times that are easy to get wrong.
mkdir -p t/a/b/c t/many t/empty t/opaque/old t/gone; : > t/a/empty; head -c 4096 /dev/urandom > t/a/block
head -c 4097 /dev/urandom > t/a/more; head -c 3000000 /dev/urandom > t/large; : > t/opaque/old/file; : > t/gone/file
ln t/a/more t/a/b/hard; ln t/a/more t/hard; ln -s ../nowhere t/a/sym; ln -s "$(printf 'x%.0s' $(seq 4000))" t/long
mknod t/a/char c 5 1; mknod t/a/disk b 259 70000; mkfifo t/a/fifo
for i in $(seq 300); do echo $i > t/many/file-with-a-rather-long-name-$i; done
mkdir "t/$(printf 'd%.0s' $(seq 255))"; : > "t/$(printf 'f%.0s' $(seq 255))"; : > "t/$(printf 'a\377\001b')"
d=t/deep; for i in $(seq 20); do d=$d/0123456789012345678901234567890123456789; done; mkdir -p $d; echo deep > $d/file
echo file > t/to-directory; mkdir t/to-file; echo below > t/to-file/below
chown 1234:4294967293 t/a/more; chown 100000:100000 t/a/fifo
chmod 4755 t/a/block; chmod 2775 t/a; chmod 1777 t/empty; chmod 0 t/a/empty
touch -d '2001-02-03 04:05:06' t/a/more; touch -d '1901-01-01 00:00:00' t/empty
