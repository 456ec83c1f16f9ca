//! OCI images as content-addressed EROFS layers, and the disks that serve them.
