/* Preloaded: makes a call on a file of a collection fail.

FAILING_DISK names a file that holds "CALL SUFFIX ERRNO": write or sync, what follows "items.sqlite" in the file's name
("-wal", or "." for nothing), and the error. While it is empty, nothing fails. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int failure(int fd, const char *call) {
    char link[64], path[4096], text[64], wanted[16], suffix[16];
    int number;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    if (!name || strncmp(name, "/items.sqlite", 13)) return 0;
    const char *found = name[13] ? name + 13 : ".";
    int control = open(getenv("FAILING_DISK"), O_RDONLY);
    if (control < 0) return 0;
    length = read(control, text, sizeof text - 1);
    close(control);
    text[length > 0 ? length : 0] = 0;
    if (sscanf(text, "%15s %15s %d", wanted, suffix, &number) != 3) return 0;
    return strcmp(wanted, call) || strcmp(suffix, found) ? 0 : number;
}

#define FAIL_OR(call, real, arguments, types)                    \
    do {                                                         \
        int number = failure(fd, call);                          \
        if (number) {                                            \
            errno = number;                                      \
            return -1;                                           \
        }                                                        \
        return ((long (*) types)dlsym(RTLD_NEXT, real))arguments; \
    } while (0)

int fsync(int fd) { FAIL_OR("sync", "fsync", (fd), (int)); }
int fdatasync(int fd) { FAIL_OR("sync", "fdatasync", (fd), (int)); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    FAIL_OR("write", "pwrite64", (fd, data, size, at), (int, const void *, size_t, off64_t));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    FAIL_OR("write", "pwrite", (fd, data, size, at), (int, const void *, size_t, off_t));
}
