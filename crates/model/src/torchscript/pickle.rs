//! The few opcodes of Python's pickle protocol 2 that a TorchScript archive needs.

/// Writes one value on a pickle stack machine.
#[derive(Debug)]
pub(super) struct Pickle {
    bytes: Vec<u8>,
}

impl Pickle {
    /// Begins a protocol 2 pickle.
    pub fn new() -> Self {
        Self { bytes: vec![0x80, 2] }
    }

    /// Ends it.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    fn op(&mut self, code: u8) -> &mut Self {
        self.bytes.push(code);
        self
    }

    /// Pushes the class or function `module.name`.
    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.op(b'c').bytes.extend_from_slice(format!("{module}\n{name}\n").as_bytes());
        self
    }

    /// Pushes text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.op(b'X').bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self
    }

    /// Pushes a number, in the shortest form.
    pub fn int(&mut self, value: usize) -> &mut Self {
        match (u8::try_from(value), u16::try_from(value), i32::try_from(value)) {
            (Ok(byte), ..) => self.op(b'K').op(byte),
            (_, Ok(short), _) => {
                self.op(b'M').bytes.extend_from_slice(&short.to_le_bytes());
                self
            }
            (.., Ok(int)) => {
                self.op(b'J').bytes.extend_from_slice(&int.to_le_bytes());
                self
            }
            _ => {
                self.op(0x8a).op(8).bytes.extend_from_slice(&(value as u64).to_le_bytes());
                self
            }
        }
    }

    /// Pushes a truth value.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.op(if value { 0x88 } else { 0x89 })
    }

    /// Pushes a tuple of what `inside` pushes.
    pub fn tuple(&mut self, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.op(b'(');
        inside(self);
        self.op(b't')
    }

    /// Pushes the empty tuple.
    pub fn empty_tuple(&mut self) -> &mut Self {
        self.op(b')')
    }

    /// Calls the function below the tuple on top.
    pub fn reduce(&mut self) -> &mut Self {
        self.op(b'R')
    }

    /// Makes an object of the class below the tuple on top.
    pub fn new_object(&mut self) -> &mut Self {
        self.op(0x81)
    }

    /// Gives the object below the state on top.
    pub fn build(&mut self) -> &mut Self {
        self.op(b'b')
    }

    /// Replaces the tuple on top by what it names outside the pickle.
    pub fn persistent(&mut self) -> &mut Self {
        self.op(b'Q')
    }

    /// Pushes a dictionary of what `inside` pushes in pairs.
    pub fn dict(&mut self, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.op(b'}').op(b'(');
        inside(self);
        self.op(b'u')
    }

    /// Pushes an f32 tensor whose storage is the record called `key`.
    pub fn tensor(&mut self, key: usize, sizes: &[usize], strides: &[usize]) -> &mut Self {
        let count: usize = sizes.iter().product();
        let ints = |p: &mut Self, values: &[usize]| {
            p.tuple(|p| {
                for value in values {
                    p.int(*value);
                }
            });
        };
        self.global("torch._utils", "_rebuild_tensor_v2").tuple(|p| {
            p.tuple(|p| {
                p.text("storage")
                    .global("torch", "FloatStorage")
                    .text(&key.to_string())
                    .text("cpu")
                    .int(count);
            });
            p.persistent().int(0);
            ints(p, sizes);
            ints(p, strides);
            p.bool(false).global("collections", "OrderedDict").empty_tuple().reduce();
        });
        self.reduce()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_these_bytes() {
        let mut pickle = Pickle::new();
        pickle.tensor(3, &[2, 300], &[300, 1]);
        let golden: &[u8] = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n\
            X\x01\0\0\x003X\x03\0\0\0cpuM\x58\x02tQK\0(K\x02M\x2c\x01t(M\x2c\x01K\x01t\x89ccollections\nOrderedDict\n)RtR.";
        assert_eq!(pickle.finish(), golden);
    }

    #[test]
    fn numbers_take_the_shortest_form() {
        let mut pickle = Pickle::new();
        pickle.int(255).int(256).int(65_536).int(1 << 40);
        assert_eq!(pickle.finish(), b"\x80\x02K\xffM\0\x01J\0\0\x01\0\x8a\x08\0\0\0\0\0\x01\0\0.");
    }
}
