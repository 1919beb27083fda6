import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.IntBinaryOperator;

/** Tiers of compilation, deoptimisation, garbage collection, threads and locks: all results are exact. */
public class Jit {
	interface Shape { double area(); }
	record Square(double a) implements Shape { public double area() { return a * a; } }
	record Circle(double r) implements Shape { public double area() { return 3 * r * r; } }
	record Strip(double a, double b) implements Shape { public double area() { return a * b; } }

	static int numbers(int n) {
		int s = 1;
		for (int i = 0; i < n; i++) s = Integer.rotateLeft(s * 1664525 + 1013904223, 5) ^ i;
		return s;
	}

	/* Vectorised by the compiler. */
	static double vectors(int n) {
		float[] a = new float[n], b = new float[n];
		int[] c = new int[n];
		for (int i = 0; i < n; i++) { a[i] = i % 13; b[i] = i % 7; c[i] = i; }
		for (int round = 0; round < 200; round++) {
			for (int i = 0; i < n; i++) a[i] = a[i] * 0.5f + b[i];
			for (int i = 0; i < n; i++) c[i] = c[i] * 3 + round;
		}
		double sum = 0;
		for (int i = 0; i < n; i++) sum += a[i] + c[i] % 11;
		return sum;
	}

	/* The call is of one class, then of two, then of three: what was compiled for fewer is thrown away. */
	static double shapes(int n) {
		double sum = 0;
		for (int kinds = 1; kinds <= 3; kinds++)
			for (int i = 0; i < n; i++) {
				Shape s = i % kinds == 0 ? new Square(i % 10) : i % kinds == 1 ? new Circle(i % 5) : new Strip(i % 3, 2);
				sum += s.area();
			}
		return sum;
	}

	static long garbage(int n) {
		List<byte[]> kept = new ArrayList<>();
		long sum = 0;
		for (int i = 0; i < n; i++) {
			byte[] b = new byte[100 + i % 900];
			b[i % b.length] = (byte) i;
			if (i % 50 == 0) kept.add(b);
			if (kept.size() == 4000) kept.subList(0, 2000).clear();
			sum += b[i % b.length];
		}
		return sum + kept.size();
	}

	static int faults(int n) {
		int caught = 0;
		int[] a = new int[8];
		String none = null;
		for (int i = 0; i < n; i++) {
			try {
				if (i % 3 == 0) a[i % 9] = i / (i % 4);
				else if (i % 3 == 1) caught += (i % 10 == 1 ? none : "text").length();
				else a[i % 8]++;
			} catch (ArithmeticException | ArrayIndexOutOfBoundsException | NullPointerException e) {
				caught++;
			}
		}
		return caught + a[3];
	}

	static String text(int n) {
		HashMap<String, Integer> h = new HashMap<>();
		StringBuilder b = new StringBuilder();
		for (int i = 0; i < n; i++) {
			h.merge(Integer.toHexString(i * 2654435 & 0xffff), 1, Integer::sum);
			b.append(i % 36);
			if (b.length() > 2000) b.delete(0, 1990);
		}
		return new TreeMap<>(h).firstKey() + h.size() + b.substring(b.length() - 8);
	}

	static long threads(int count, int n) throws Exception {
		ConcurrentHashMap<Integer, AtomicLong> map = new ConcurrentHashMap<>();
		long[] locked = new long[1];
		List<Thread> all = new ArrayList<>();
		for (int t = 0; t < count; t++) {
			int number = t;
			Thread thread = new Thread(() -> {
				IntBinaryOperator op = number % 2 == 0 ? (a, b) -> a * 31 + b : (a, b) -> a ^ b;
				for (int i = 0; i < n; i++) {
					map.computeIfAbsent(i % 500, k -> new AtomicLong()).addAndGet(op.applyAsInt(i, number) & 0xff);
					synchronized (locked) { locked[0] += i % 17; }
				}
			});
			all.add(thread);
			thread.start();
		}
		for (Thread thread : all) thread.join();
		return locked[0] * 1000003 + map.values().stream().mapToLong(AtomicLong::get).sum();
	}

	public static void main(String[] args) throws Exception {
		int rounds = args.length > 0 ? Integer.parseInt(args[0]) : 1;
		for (int round = 0; round < rounds; round++)
			System.out.println("JAVA " + numbers(50_000_000) + " " + vectors(20_000) + " " + shapes(3_000_000) + " " + garbage(1_000_000) + " " +
				faults(1_000_000) + " " + text(500_000) + " " + threads(4, 200_000));
	}
}
