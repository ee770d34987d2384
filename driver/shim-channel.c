// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files that are read, written and polled: channels. The rest of what the driver knows about the
 * kernel is in shim.c.
 */

#include <linux/anon_inodes.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/wait.h>

long gzr_channel_read(void *channel, u64 to, u64 len);
long gzr_channel_write(void *channel, u64 from, u64 len);
long gzr_channel_ioctl(void *channel, u32 cmd, u64 arg);
void *gzr_channel_poll(void *channel);
void gzr_channel_release(void *channel);

/* As the ABI's doorbells. */
#define GZK_MESSAGE 1
#define GZK_ROOM 2
#define GZK_GONE 4

/* Where those wait who poll a file, and for what. */
struct gzk_poll {
	wait_queue_head_t waiters;
	atomic_t there;
};

void *gzk_poll_new(void)
{
	struct gzk_poll *p = kzalloc(sizeof(*p), GFP_KERNEL_ACCOUNT);

	if (p)
		init_waitqueue_head(&p->waiters);
	return p;
}

void gzk_poll_free(void *p)
{
	kfree(p);
}

static __poll_t gzk_poll_events(struct gzk_poll *p)
{
	int there = atomic_read(&p->there);
	__poll_t events = 0;

	if (there & GZK_MESSAGE)
		events |= EPOLLIN | EPOLLRDNORM;
	if (there & GZK_ROOM)
		events |= EPOLLOUT | EPOLLWRNORM;
	if (there & GZK_GONE)
		events |= EPOLLIN | EPOLLHUP;
	return events;
}

void gzk_poll_set(void *poll, u32 what)
{
	struct gzk_poll *p = poll;

	atomic_or(what, &p->there);
	/* Orders the bits before the look for who waits. */
	smp_mb__after_atomic();
	if (waitqueue_active(&p->waiters))
		wake_up_interruptible_poll(&p->waiters, gzk_poll_events(p));
}

void gzk_poll_clear(void *poll, u32 what)
{
	struct gzk_poll *p = poll;

	/* Ordered before the hypercall that looks. */
	atomic_andnot(what, &p->there);
	smp_mb__after_atomic();
}

static __poll_t gzk_channel_poll(struct file *file, poll_table *table)
{
	struct gzk_poll *p = gzr_channel_poll(file->private_data);

	poll_wait(file, &p->waiters, table);
	/* Orders the entry in the queue before the look at the bits. */
	smp_mb();
	return gzk_poll_events(p);
}

/* Until there is one of these, or a signal. */
static int gzk_channel_wait(struct file *file, int what)
{
	struct gzk_poll *p = gzr_channel_poll(file->private_data);

	if (file->f_flags & O_NONBLOCK)
		return -EAGAIN;
	return wait_event_interruptible(p->waiters, atomic_read(&p->there) & (what | GZK_GONE));
}

static ssize_t gzk_channel_read(struct file *file, char __user *to, size_t len, loff_t *pos)
{
	for (;;) {
		ssize_t ret = gzr_channel_read(file->private_data, (u64)to, len);

		if (ret == -EAGAIN)
			ret = gzk_channel_wait(file, GZK_MESSAGE);
		else
			return ret;
		if (ret)
			return ret;
	}
}

static ssize_t gzk_channel_write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	for (;;) {
		ssize_t ret = gzr_channel_write(file->private_data, (u64)from, len);

		if (ret == -EAGAIN)
			ret = gzk_channel_wait(file, GZK_ROOM);
		else
			return ret;
		if (ret)
			return ret;
	}
}

/* Does not wait for room: who calls has more to do than to wait. */
static long gzk_channel_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return gzr_channel_ioctl(file->private_data, cmd, arg);
}

static int gzk_channel_release(struct inode *inode, struct file *file)
{
	gzr_channel_release(file->private_data);
	return 0;
}

static const struct file_operations gzk_channel_fops = {
	.owner = THIS_MODULE,
	.read = gzk_channel_read,
	.write = gzk_channel_write,
	.poll = gzk_channel_poll,
	.unlocked_ioctl = gzk_channel_ioctl,
	.release = gzk_channel_release,
};

/* Gives the object to a new file, which releases it. On error the object stays the caller's. */
int gzk_channel_fd(void *channel)
{
	return anon_inode_getfd("gzvm-channel", &gzk_channel_fops, channel, O_RDWR | O_CLOEXEC);
}
