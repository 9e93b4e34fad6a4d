//! Memory of our own for what the kernel writes to or reads from: an anonymous mapping.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// An anonymous mapping, page-aligned and zeroed. It is unmapped when this goes: nobody may hold a
/// pointer into it then, the kernel included.
pub(super) struct Mapping {
    pub(super) start: NonNull<u8>,
    pub(super) bytes: usize,
}

impl Mapping {
    pub(super) fn new(bytes: usize) -> rustix::io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing
        // that exists.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let start = NonNull::new(start.cast()).expect("mmap gives no null");
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, with its length, and by this type's contract
        // nobody uses it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
