# SPDX-License-Identifier: MIT
#
# Warns when the layer is there but its feature is off: then the kernel options and the changes to
# other layers' recipes that the client needs are not applied, and our own recipes are skipped. These are
# skipped without systemd and seccomp as well: a systemd without seccomp drops the units' filters
# without a word.
# SKIP_FEDLEARN_SANITY_CHECK = "1" silences it.

addhandler fedlearn_sanity_check
fedlearn_sanity_check[eventmask] = "bb.event.SanityCheck"

python fedlearn_sanity_check() {
    if e.data.getVar('SKIP_FEDLEARN_SANITY_CHECK') == '1':
        return
    features = e.data.getVar('DISTRO_FEATURES').split()
    missing = [name for name in ('fedlearn', 'seccomp', 'systemd') if name not in features]
    if missing:
        bb.warn('meta-fedlearn is in BBLAYERS, but DISTRO_FEATURES lacks %s, so its '
                'recipes are skipped. See its README.md.' % ' and '.join(missing))
}
