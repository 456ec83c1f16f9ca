# Runs as root in a clean Debian: the package comes, works as far as it can without KVM, is replaced and goes.
set -eu
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
fail() { echo "$*" >&2; exit 1; }

dpkg -i /bellows.deb
bellows --version | grep -q '^bellows ' || fail "bellows --version says something else"
gzip -dc /usr/share/man/man1/bellows-run.1.gz | grep -q IMAGE || fail "no manual page of bellows run"
bash -n /usr/share/bash-completion/completions/bellows || fail "no completions"
for file in copyright changelog.gz third-party.gz kernel/README kernel/COPYING.gz kernel/config.gz kernel/bellows.config.gz; do
    test -s "/usr/share/doc/bellows/$file" || fail "no $file"
done
ls /usr/share/doc/bellows/kernel/patches/*.patch.gz >/dev/null
test -s /usr/lib/systemd/user/bellows-gc.timer

# It finds its kernel and initramfs; what it lacks here is KVM.
mkdir -p /image/bin
cp /bin/true /image/bin
bellows image import /image --name app >/dev/null
code=0
said=$(bellows run app /bin/true 2>&1) || code=$?
echo "$said"
test "$code" = 125 || fail "bellows run ended with $code"
echo "$said" | grep -q /dev/kvm || fail "bellows run does not name /dev/kvm"

# An upgrade replaces files by renames: what runs keeps its own.
digest() { sha256sum | cut -d' ' -f1; }
before=$(digest < /usr/lib/bellows/vmlinux)
inode=$(stat -c %i /usr/lib/bellows/vmlinux /usr/bin/bellows)
exec 3< /usr/lib/bellows/vmlinux
dpkg -i /bellows.deb
test "$(digest <&3)" = "$before" || fail "an open kernel changed under its reader"
exec 3<&-
test "$(stat -c %i /usr/lib/bellows/vmlinux /usr/bin/bellows)" != "$inode" || fail "an upgrade writes into files in use"
bellows image verify app

dpkg -r bellows
dpkg -P bellows
left=$(find / -xdev -iname '*bellows*' -not -path '/root/.local/share/bellows*' -not -path '/bellows.deb' -not -path '/proc/*')
test -z "$left" || fail "the package leaves $left"
test -s /root/.local/share/bellows/store/format || fail "the store is gone"
