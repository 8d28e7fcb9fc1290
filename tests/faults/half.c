/* Loaded before the C library: chosen calls write half of what they are asked for, and say so, as the kernel may. */

#define _GNU_SOURCE
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long first, last, count, halved;

/* Let calls number `from` to `to` on regular files be short. */
void half_writes(long from, long to) { first = from; last = to; count = halved = 0; }
long half_count(void) { return count; }
long half_done(void) { return halved; }

static size_t allowed(int fd, size_t size) {
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || ++count < first || count > last || size < 2) return size;
    halved++;
    return size / 2;
}

ssize_t write(int fd, const void *data, size_t size) { return syscall(SYS_write, fd, data, allowed(fd, size)); }

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
    return syscall(SYS_pwrite64, fd, data, allowed(fd, size), offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }
