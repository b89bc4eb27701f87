//! How names become addresses in a program that is linked statically: by the resolver's own parts alone.
//!
//! What `/etc/nsswitch.conf` names beside `files` and `dns` (mdns4_minimal, resolve, myhostname, ...) is a library that glibc loads
//! into the program, with the system's own C library behind it; a static program has another one, and crashes. A dynamic one does as
//! the system says.

/// Lets names be looked up in `/etc/hosts` and by DNS only, where this program is static. To be called before the first name is.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
#[allow(unsafe_code)]
pub fn only_by_files_and_dns() {
    use std::ffi::{c_char, c_int};
    use std::sync::Once;

    unsafe extern "C" {
        // nss.h of glibc: takes the place of the database's line in nsswitch.conf, for this process.
        fn __nss_configure_lookup(database: *const c_char, line: *const c_char) -> c_int;
    }

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: both are strings that end with NUL and live for ever; glibc takes its own lock, and only reads them.
        let status = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
        if status != 0 {
            tracing::warn!("the resolver cannot be told to do without plug-ins; a name may crash this static program");
        }
    });
}

/// Lets names be looked up as the system says: this program is not static.
#[cfg(not(all(target_env = "gnu", target_feature = "crt-static")))]
pub fn only_by_files_and_dns() {}
